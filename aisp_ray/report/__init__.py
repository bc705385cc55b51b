"""From rows to a finding: the table, the figures, the page, and data sets to train on."""
