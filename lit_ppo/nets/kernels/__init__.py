"""Fast forms of what plain torch computes: the LSTM layer, advantages and objective over all positions, tanh."""
