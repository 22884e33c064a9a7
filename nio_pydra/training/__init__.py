"""Training networks, on images generated from label maps or on real scans."""
