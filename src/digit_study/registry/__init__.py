"""The registered model: contest, gate, ledger, promotion. Imports inference to support."""
