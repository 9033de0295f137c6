{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "bZZQuLxBJ/Vh7fuZB6ch5eAdWjvWh9frkdKoUrY2xNw=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "ycUc1pjsG2RJwXFkN5gb00SzV5KgiXCSYKpRQhaQIwyhr+ob+oPtzLlmQqqn5GG86czivfxpixBh9EyGe7rBx8O41MybpwJrzb/TFUeJ7uZaVwTaJ3DNFCaXGwugpSz592nFHFz2GPV0Pg3TfZTVZQqbIVWKNalhKEbHCB99RuRzV7x2Hb+3Zyie/45VOKfNGDLc2CxgMYkmFC/rG8jUMBNP75XHGl2msyzz3024GoZygKg48SmGWgUFgh4UBdPN7WkWB82BE6zf5KJKzcZRf9VhhuASdUUJeFuYnHQl+704jmhahrwYcZ6opkHBc35HzgcuREF6Uc08cIWZ3/yWJ3+U0P/D/8Gom6zeKQkCwwfPLw7aVvZXL8CQ/xz3nyEIlPT/+AcWw27+1kiPITfEmE/kiWX4T+HqxZULCNFKnLwNPFsIjhJqetvIUaNZk1x1vgN+ECO4RSNbJaCuqrs2v5qAOuyZb2QR1+/5zuLtFyhP1Wew4kFtlv3PkptiP/101pt+IlrBkbS8SyHrtRc2Hd4Zn4qnPNIU4z4w6oDbGSTcEc8b8HTtlEW6wHnsWvXaGbgYigNcB0944wLSJwklzfJp8//POLzoDrCSplBnHUkiQoIviMsqFNp4kIvLWkZ1V2/YuolsMG7AXY0MlSpGNRMCO0cCP0MZiDKZSIoQgCx4Kxi4sQ/Uif9E3sUGTsOxwKDj+kallspMHkMe399Ny3dy570YtpTkvabvY6DRMgS4wKLi9XGqh8MYzEb4/SDupMirzvmPrm9OHQZ0HRAMlKaNRYZ5lFm2MA5JsSWK"
}
