"""What a run was worth, for people: analysis, verdict, page; several runs compared, indexed or pooled. No torch."""
