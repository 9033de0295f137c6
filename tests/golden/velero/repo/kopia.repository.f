{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "v0-unofficial",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "tCzbwVzM4mrSk1yQn9cLCmjQAbyQW1oS3agdCRH0+gg=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "ougM6zpfuzjjBhnJHmiGHHwnSZXQu1ZmQRTwgmA7l82jd9Ivcf4KQf5OL07v1/NNGnbq/7WLpWKkP6RZbMe0wUplxie/MRZLHvYJ5Kmlkoljxim+UqTLAWXAbj2FCSaTV0nSuJgr13TGyqBJJlMELLONi3sXjcLvfE5R3rnInA5GZkb80FnTgFIe9sYDN8ZvDI6kDKu08GvbS6LhCtsMOvlK1s+1nBLdhM40U5BusK2+Fm+GyAdgDixLI2WhSob4iYglcNgmlSKa2H+78SftPKdV+DoQGiR77m6K2tAFDMPMlDOuoIxQeE3MPGa2p3gGjcTriI2RtAZrZ8x47Ef0esn6giHlOC0yN9xlEyNGe8RN2Wsukm5MtkXtXMxEUi8mX5DJRYLUG+AzUsbZDdssrHOKhz1TI4p2ULpq72cCw9RwZcZ9ZnpR4kabz+KKBOII/lt3B/59+4Edh3PLMUT/yhSkrGwgtH6EkABcy/Hu2xxwuaPcbaA9w8qSnAO3xOYT7QosNixRmqa86V7bVik6sBT6I5SfD2pae8jnRsUDafV2EhgLDeXjO2YAgfRwvg/0lsQ/fKdoGPxDR898XSnxdjIwiAUbq7e1EhqutUfdS819R28boAqB+CUiwEV5Uu1jf7mzyYM+mthnO5xnumD+k+ajuja2ynp0mHdEqOlqit9kpTxGHEKCB0E1dw29JFcckSrOh53hltIlK66Wpvs4rIX27QiBXk8sT23uQ4V0Vy95i6baRX/JJp4ctd/KOefq02zBPukHVwHRytSMujuCZ4mo2XgN4SMgAwbGgMKAmg=="
}
