"""What users would take instead, measured by the same harness. Optional; see requirements.txt."""
