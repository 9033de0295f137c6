{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "Tdg6ut+06dGG5DjcrMEBKOqxIR7gY+5Wvrgru2ck4Io=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "CvBQeP7OeacvFzAwG5wCT+ydFyKGE1wbXJup7GApFTCRdjHUVqfkfVrmdnYJPj1AxQt8fFHRsKBZPoS2OLCrxqtZitvgHlnm7ZMULNfAAVRHXOWRrqAv0huBislQYSKK4dmvIgVrdVuuxMAVrZvOcERhzqPkaxeki4/OrSWm1abps5MVJK5pmRNWjwSTb+jZprOMLlZKbHLIUpIIb2Ap+9DAuWH3FHj9RZZctl3dzxavhhhVBZDkoDXUIoopIbiaRIeU/6Nsg2qNPJRX6Ht1zi1WTaqPe78CI+H2HdPDLEOYSYKPVeR5m6jGqj3p/sBHDcD4H5sm04ZCAjpmCa/APMpHwV7WnuTRwnUwC/h1fVsGxBP8dekgZal5P1P5pYBFU3FfsH3N3eG+xurQMHeu0Zo5XfzmJfkXgHAujpQ36ZITbERg4Ag08TRJqEHTZ9nCGDCF35WRfAhCtn9n2R4O5pk5swOa+w7piN53rkyjfdLfR4zcpwfVwb1zU+OB23tM/eAlfIiQnBteUYGhDcNIjXmn4XIfOJ/cB1qPzqa2DDXlNMyAKloJ9dLiuT7Genf6sQmCapIyVHBsJFFlyRPy7aOsF8RXLV1P2H0D2oIVDEFe/BB55vzx3MFUSaduDheYwmtNPQBfUL+OXxGkuwdcQHnA3F98xPG0HPoh321plNhD5+TM+YO9ymluI460nBA9JljtCLHflra5IySoGjYjVWauJvnxzkdv39k55gEP5NuOsLyxRzIJso00SXjR4RVClzZuGp55RNXaEdz1HjQcQmcboN3ECJA="
}
