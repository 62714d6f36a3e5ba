"""Many processes that learn together: Ray, the mesh they add up over, and a base that is split."""
