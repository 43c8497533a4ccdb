"""The experiment: every criterion on identical networks, batches and training, judged by the official metric."""
