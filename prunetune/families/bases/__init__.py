"""What several families share: one file a lineage."""
