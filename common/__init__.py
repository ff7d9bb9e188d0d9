"""What coordinator and hospital must agree on; knows neither side."""
