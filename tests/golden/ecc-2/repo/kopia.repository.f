{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "gbawGWYLptQPv3xtI/YV4umxNFpS57hFWRt0G5sgzmw=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "/avGq0eHwYiL8nF4DQ6nI5j9OteNOXLU5D8+ArfNE066H+i+xAy6BCnEzvptjm4zgEal92HurIMgvkL3PUgbAVKJZVH+zZWJ7AwaO94MUFmLmD9c6wMhK40XoP2b3he9Xx3KnFANVVu4p3u+W5jjxrd3qDjB+VX3bZo3vWF+ME+3QZqJ5+L6T9ykmp685KTXnoHHvMEgFIUnfMrMdXniWytzsru0Mli9WdVrLMwB5eujv5vgPYhoGVB2+kNB7XkxHQ7MQImgdWDRiHc38x44uxJAcAaznjCd41ycRsAMKjFO7FISM4AjJf+z0VM/hQVWbwHmIT6r3yN1pnZHV4psRosMRiFK7y8KGKm27QIEvE/ArJhWONxq35fHfAo3zhgU7txWUI4M3xLmKVd0+JGOR6/SFUg/hPLI3NvyQ0iW004bB26yh6/Zxwat0LP2JQOpsadDgqW5X98q17KQodO6UaHi3j0q7wxZ4ZrcKlwHn3PM+cFiboVOVxsG6h2xEJH/Vzx2AN0IYyW//m+UbBs0vWpugNMdM1YeY6W+/j6Z8iY+TP/c8pJyojm/ePNCNYYMu6Fe7dwASaIubq6vpOIp1jRAuobqcnyFcgYClEmi/uXrJ34zB1KjwNUZn8e6y9Q3Kk2WUyWJhqNhV5zwRv6ViaXvcJN78uSSmt5wCOnIlzG6aPhMOfsQ1qgODq9ZPQpVWXiS+sEdqne6l7KcjJAV4hzyRYXq7ZiR0meFcxXR52BC9iKRK3phmW9JUdTsgTYpHdgfA0R9j9tlDF6v/WuiP4+zv/H43v7VPX3WgSi0/vrO8tyJMzRnlKZOYKT6b9xlI2RcxKeX4R0oek7mniXamkaPOe4YR5XhZQ=="
}
