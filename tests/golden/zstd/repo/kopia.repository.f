{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "Mzk3fu/IUeIB3+MLZFSemy+MSd9xbVJ5ahuXXpVzxV0=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "+TV+8sZJjqTZHKvzuK9s5c0bPP8pJ4D4oH8vb0Srlxr68uIsRtKOHzCdwVK1NBIlBnivirSUCiwYYQP5Ceu9D/dfyukHrMln5fnYSTVbHoj5yrBa3zIvfTrYwy9x4/AgjqPYk2iXO7k+pWQoPx/HzIU8MMsstOSiEePIfzEbm/yDB6kcjtWcSxSHtp59JUN0wVwvx8sCNf4+YMEVlD2GAWVbvoUhYRrCasxP4mgaXnHIFMwDG+2X3dVdLcXw2v/6F+k2/U3xx3ZxLz3IPESP5qJ4pd9pd6fcLuat5Y1bAipj3UUZyboP45cK71xOtafduC3shKicG7OsS28tqcOTCXMv6wyYGv46f5IZ5H93nNYCJspUES+rWR61IOZr4LBbD1JVz5XLAVEgS35lQxG+ufilILGV0l5/CIxVs9Tv8Xv5lnjuyKe0asehjyB5rfkfuq53segoyfuh71yOjntdpAH0W5pn93SrCXk/5BKh53F5Kv1cYxYoy6hX/DecvHx8Yd3pbQHY70KtwSM4riQMehEb6T3SfQOOxXXE0Y12mtRs503duYmX31Kj4a1v4B08hr/irchGr8YsnXLaFuTcstInLGrk0UVnjZDV3C+LZQdcLH89YK039rvgLee/IhtQ6M68uT6ZMlmXRnkYMjj9ZM1l7VZ3TLJVz+uNOAVJhl3SDpuAYcO4tXwmNb1T1/sWOBkq9PbPNrBw1WiKtl6EttGQTGdCJPhCsS6gBqVZWxrJ74UZN3wpPaxtmwhksk9VZZOdO4dA7sSABUyDx60cSaQF9k5z"
}
