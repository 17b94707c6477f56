-- What was said of these bins before, and not again now, is taken back.
INSERT INTO verdicts (tenant_id, kind, agent_id, bin, severity, score, observed, expected, detail, generation)
SELECT tenant_id, kind, agent_id, bin, '', 0, 0, 0, '', {generation:UInt64}
FROM verdicts FINAL
WHERE kind IN {kinds:Array(String)} AND bin >= toDateTime({since:UInt32}, 'UTC') AND bin < toDateTime({until:UInt32}, 'UTC')
    AND score > 0 AND generation < {generation:UInt64}
