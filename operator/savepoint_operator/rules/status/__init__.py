"""Status patches, conditions and their texts, as users read them in kubectl. Nothing is written here."""
