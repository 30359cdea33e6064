"""Edge-consensus learning: no central model, neighbours agree (Niwa et al., KDD 2020)."""
