"""What every batch job is made of: planning, actor pools, rows between stages, the ledger, the run record."""
