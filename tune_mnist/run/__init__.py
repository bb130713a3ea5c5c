"""What a run stores, with the ledger as its single source of truth."""
