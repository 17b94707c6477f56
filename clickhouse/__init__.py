"""The store: connection, migrations, event type, writer, rollups, queries. All SQL lives here."""
