"""What mail with fewer bits costs: accuracy against bytes, in all three modes."""
