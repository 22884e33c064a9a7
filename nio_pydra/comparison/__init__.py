"""Methods side by side on the same scans: cases, statistics, pictures, and a page that holds them."""
