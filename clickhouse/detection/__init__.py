"""The detector: what is unusual in the counts of agents and tenants, in SQL over the rollups.

detector             its round, every five minutes; with progress, how far it has come
history              hours of agents and tenants, and what is usual after them
loops                the model that tells a loop from a busy hour
statements           a file of SQL each
"""
