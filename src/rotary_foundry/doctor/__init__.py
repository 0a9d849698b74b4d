"""`rotary-foundry doctor [RECIPE]`: check the machine before a run starts. examine.py explains the decisions."""
