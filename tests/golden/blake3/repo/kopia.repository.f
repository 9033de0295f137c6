{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "qF+HOOYwqdW90E/tYTqOGTKfoxYkEKQlCAVy0TuHKCc=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "1OGW+utjt3+7HGDjwEwEK/qiDZpg9ytyAHljpvpVQUhBeFk4Bfr3rvBVZD5rsQi8ifIbHXHgCNQPCvZqnQMUca89J6YEjF9Pxi2OqhfRTa7ZMPluDNPOUVPsmG0OlZ7e9mw3vYts6kPEdsdsqJ+aW4gtl+r3mV22u4KdvMb0rxsFjabTRTpRHZimCYVpHwqDg2hRsrHeUUac9EdCJNETzJa1e2L53Tn+EO4BmCpQYZfbDZnS7ovZzXN1KlTuUdi8TvJ0hskhQ/SbTCPY+haDGZXcSc4ONvvwPxtlQG3fsyRJ9sxqe+iiA6v3x8GB2Rvq7qzlXLvBpli+jGXQjRwcOAE96N9O9vIx17pv0cbFzHhOoqsNQ7+UTSYZkXZtUzndd9XsJjqux1AuP1R6hqfSmqNBd24R/Vs7cL/yV1ILHkh3CcYbz3r7oQfJlleHxE6sOLYLtD/Hh26+YCEmGN6JXWb2SFT/ANKlCgR8mAUoBCc6BGpAvmlgYABNojrgD1tqRfKucY8/WV1N8K6Iw1inAXxN+/KMOfQ7/GJuLKAqQW9Tqr5x4bQ+synCl0kq+N/+AlzWkgjRQYICmrEdyaVUPoqQUcvAg+nLP6q7D7dYD5IbTSiOsdIix0PR1IziCJiyymkeRSETFDHPUUM1d5LJQXRLyQ+m1xfy9aG/UXR0UJnLhiyC7lWOIlXtB4HfsTigFcHUmVAiPoYGkGQXo6pspGQ2DHWjgKqFUS6crhqJtT4pcLqNSobuuo7srIq6H9AzygbR+QbyWCJAL7UNjMLBzBss"
}
