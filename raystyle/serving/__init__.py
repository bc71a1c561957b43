"""Base and adapters side by side over HTTP: which adapters exist, engines that run them, routes, and the page."""
