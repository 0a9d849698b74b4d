"""`rotary-foundry doctor [RECIPE]`: checks of the machine before a run starts. examine.py explains the decisions."""
