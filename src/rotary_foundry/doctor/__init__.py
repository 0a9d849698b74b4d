"""What is looked at before money is spent: `rotary-foundry doctor [RECIPE]`. Its decisions are told in examine.py."""
