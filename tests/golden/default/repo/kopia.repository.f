{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "rQsXSqqaEyZ2RWrbu/QiuCd1h6cl9cj8A5Q1/0lu+mY=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "irf009jBAPFASuOX1NRIBLowDgfdiV9v9b5KHX8GttikHFMY5SMCOUa/hKtS7z9vc75rfDwaM77KosarNES4YYBvs+UNfLcmM/t/CFxcLusrCBqZsczBgNasBwMOSN3lUhij6w1OMuNjp5tY60pka9QacE1fjVzrxIupxSR9sgbYYOYxIzx8YKLT/Kf4EdHwOMrEPF/Uo3CWQumO/sNa1yZpI4exfQG6iX0od5KiHgu69JekYwx6UroxpDVDHM6O1QaLZ7lbbodjoOiywOoQjbmVmZUS8FBJMxlS+/A/mVhpDuLjVIRbBSGty2n04Ow0o9XnTXCBOcwAFjAKLkFmXPdMIHCWVNeZhh6Og8sgi7vMMYXqpC7oYw9TU3Pa4EHc+6IuZZfdm896G+E0HUACYELUbkHYVgU8WMA8faUVzG8wX/HgRYdNQQJeunn/d4dJywFVWqq87pxH4JNwjGzRM5JdykP4GF+sxGh+oSQQQ8sN517ngvLAMx/Pn9rG8pG+StIxz/l3IKeGjEJxBeAzJbRfZl+cepDTPsWzxNuFQgOHptcZq28m/+I0qqkuffS4Ks/yoxygqzO/58ChXKD5dwmmMkk8u1+zvmHN1Y9UwLSX2UDkmEwE0Fhorf5WCpoL6rzA4wIMfUfo6P3PVfxaDo8t3ngi4YslCj//XF2uZ/h3cI+f+YNsbJhex7fSA5lhLawemZv3QwcKZK2/kV2Nn1uAIkN2NYVdOHL55Sl98Z0NlDRRZ9Y0YPb+w2gm2m5uLl1NgLfzHkgjS+4OClMSnYm+dShBktJ3Ny8RLM5rNg=="
}
