"""What people look at: tables, plots and progress bars. They read scores and masks and change nothing."""
