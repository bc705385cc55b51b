"""The machines: policy and reward actors, the elastic pools that own them, placement, metrics."""
