{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "dorMH8WPztvkKvPN/jaDOL1kCGNT/RsMBgWHLI14TiQ=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "GzXm07XkpzY0c6J8yWNgMD5d0wbmvJX/NatH2IeVvMHJgq8OimEWEh+4xwOLzpPsYE57FoLCY0gc0NC2YP5c2LruBhck9oujpoXhLFuCnCS5Y4HElcJAI5inHrAzM6D1sh4MtXFvmdnwxYhDfJwJGPPrc2i1kgcJ+3suchpoJDtPX2mxdaWxIPolLIFacoyL9Fbaphl0olSe6lbg/ggIoTfZfoe2F7fMPwD66+WcytVuUAtqBJ+p9oVKzJ8WOzQkVQwogjkKHZV9ZJ/IcR2cNfuyIF0h5JLsfchQJpJ1gLxllh6HNKx4W+FBjRJToIPINm0sCMmOSW/t0BCH0l5M9iRJEgt/lxWx9T040R5O4wxuXu8tldCYWot/dh+XZ/E/PiTFtyRPiVKtvBOKxddDOrn6yBjgewQhuBA2D5mmGUHnLlifHba+280Bh5Yog8LeryKZlBsruzhM6AR0qDjJkps1gNkACpqcxD5Utjks+2SM84ZylhFmqhsdNgs774bsgCV9DHCfCp9i/73b5iJuVlnu2esII2Sl3JsMkESX62Kj3R8fIQfiivIhVdw4AivFy1tUbwSOP3Dl7J0+dOZA1QeyVurnV9Y+WkDIPku5ZeelmcQnxQtZd37E/eodJLVHE3YSb479/lCou+m9i7ovZhL6JCiv81H8USmR3f0Ja78XT3Tpv/vveXIzwL42nigElfX9QYty2HgQCR+evX6Al5m8UpjubJjjLdd/UbYSzKvXBIaUmz2QFoJiIL8D2C+EWDZjwNZi6EJJzmUs14UPhCGmKbWGnz3ygJm0hG7fHcnb9MyDJfREjYq9jwZqQbPTKOMExHpY75sr7l/zjcRWoD0S594FplBzhA=="
}
