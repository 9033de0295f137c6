{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "j0zdIGNK9vjMHlLL8mNGQDCIVQ2E5saqIOx+E0zejAo=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "2tExqVEtUz8Tk2XfiAJs+v+S4WSTNdyt8dv0xpoHu3kwA8y0mRUOKpaurlPYpgTMQUMbpRM6ZIVwAwdpwgQWOl3Rx5mrCwBXTyq1nKuSXrNjHlwi0qgKqvPhLulW2LlW2uPLjzlrk1gHcRnQVJB7raKuyhmgDyHxUqtZMNcsDaonx2Tlg+D+Q0h549bQYtpCik5UEgI4KQTJXo2sz9CXGW9n0k8VFfaW6yCLV6kjMjqZ3xQoHDSIQr4rq1CYPnXPwL/P3Zw54d0CwNbdFFRRbmug8v0BZ4hy7lO6Z3DxgMzLmx64id3Kkk4WxoNK+/WTiZ147H3sCvCuFNf3RUIM7HVPfi2CPIi09X9+vB0WXngkjR4sw6I07Hi/vSVRo9PbcIr+CDPedgF6gBEhVDJHehYsqb1UZ3aoP2UYY+ptEDXGN400KNL1o1rfh4NIsQ62GAhRJqgcGYQJKt3EbnnJhcAXIDchD9N6dqe+MVBLBa59xxV0uol8TQ4RT7gSjjGWk2Jn6493w27tbkSPb9J/WlF8BUq8OsDn0kaVonA70D87AFjrTauenTG0T6LZ6YsDogQsgNcey/BIcijNp1TCVkfEJuxpf5jblpbPzwVEJVJ4FqMzkfgGEH5UlzrNr9r1/B+pHwcBBLipU07XjN0CIotm4Sb0+J27LQODaMGSSaaYTCcBYExc5rYRi/2WX6YYSjJKupd6Uchk8PKWz3UKCaErO97V7xRwkMxVaR8JrjKwID7+RT4yddnw1jN+xoxgkmin37l4vaWVt5BZgdwEuubpLnEQWfWa"
}
