{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "j0zdIGNK9vjMHlLL8mNGQDCIVQ2E5saqIOx+E0zejAo=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "mGHN0ks0DiTYohCoJaKoRI3IBgrVDSaE0og9S15MaOFp2UT4N65oWI+SoIPpe9dEeVnmXH7amFwcajV/gNKc7TqPFJ/5eXHgEXS78Zo6NrDPFove204CCeB3tPetQ08Lr1B13YDTczE/tlFthjKsOioXMeVYnA2qpE2JxCNNKWi8A1uzA5yoRDi8UAdbF04Q7CULN+Sh8QcPaKQAT7uDZTFyZaSCUyzENat0oM9djo6V9qiaWQy1e7n11q7Ibw/aNyZa3KOtdBPlyVy0my69VcCwg6FudG3mNCvHrpJEYW5rzH0reVibqhsAaWFEF4YBFfvABlFXWh8nz3brULrvnJ0+b/HzW3mHcOE8BnwcmziJ+DoAGCsxhkK1aJzt3bjXABjwUmyPeRu+iPHHxUDRXW1hGpVm+I8kp00iYOQoytgZNXeJqenAnS2uT3d2pBaB0c2XwNTkTcrvB4ROVkkIrDNMvi988Upgqwn0Y6FQg2Ny8BGHBg658RNJnCcg5jrgHcjFwcTyNdwosbJ8Kr9ao7k9hih58MFhR5I5StcT+hXQcF1k/8FnfSnivXUscbWII1MKFn0K3aanNRA1Cc4UAbpoSkRpaxwZzPoevZzln5+PgDKwgz9s7Q6qtzrYoaIjQ5shCTI8ZmVNWMkoYqNfd6m/wATTBMSYRoaQxUC/pPLX9tvecx30weF9QzEWbw4yrfFYs7ARJyQ1uXyNhNgaWZm+RmND5SoEzBm/"
}
