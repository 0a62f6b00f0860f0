"""The registry: the sealed test set, the gate, the ledger, promotion and rollback."""
