{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "b96HKm6aIHSirjMR2aY+x1cbdiZlYNGL6iEz656wagw=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "4iFEda9fwVl2jH6bdTUXAFtovQyABq0gxtaqMChhGYYPBNrIBogtlk00+4mhgZ+Vtur+Bmdu45z/vwjixC6f6BOz3XovR5we1agfb2dPEbCsPHxOV8rGQkG/xwFQcgGnrzEh5PrmUF1v/whM/UUblHzXEGprtQWO0dciPe3zASvaZXoN1Qg8+uO5uLplb/DwJgrcqlNGMOzg0cJx2yOHBJg7rGQncca/xTpmiJboAoYh83/rO4SYXrnD5BhbO6Q2wO++xPPxKTi1sJTEGQyZ16j2X3y2cOss+3mlYImT0vBf/rqmSjzd4yCEQBvBDQSMAdApNYryaN849hhF0TFqyuazoacR9YILzNoFv1im8himBvdd/kUyoQEqLRgOerYJA6/ckSE5vtv4rX1VkzPFvNo8Cc6jJmhnlzikOAWLx0Fn1xEgVn0vM7htdAeTkzumMKMXg8763B/K5kycr1bHHw/ADwgWYz8bQP0l7KokkupLqJJ3L0/rC2/wNSVXA5hmWyGWJyXDdJJUhwZgEH8Pvuv/Um9ZHP1wJn5Ov4ZUAalBdMxIJwsOpySrrxgnQX2zwj8lm4UIQnPzrjZkM+MJk1ncgUnFQD4dRLwzgW5tH6fXyxPZK4qUInMXtOEDdI81Stq1lODUOj1x+oi5zj47orrNdCWquknyuGbN4jhf0mKHPDbL8JlZMQ1gD71asts9IBg7PX7LBuhuoVxLb9M7Yq7yOqkd6wxIteqAFfkcOhGsyUbn7i6e/MSGq9xj83SElhCgyXZanSfB6CsV/QbqS/Hec1eofr+sKngDGWfnBg=="
}
