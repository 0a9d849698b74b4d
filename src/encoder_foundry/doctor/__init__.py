"""What is looked at before money is spent: `encoder-foundry doctor [RECIPE]`. Its decisions are told in examine.py."""
