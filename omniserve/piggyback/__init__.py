"""Best-effort decodes whose attention runs on the host while their dense layers ride along."""
