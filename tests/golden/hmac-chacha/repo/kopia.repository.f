{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "xBZ4kEkrwh4lv7/hML7QVt7a9fHbixElR9rO7Qmekpg=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "mzKYSdSnvQQPqhJPioFD4EZPzs1+6Q0adcXUDEshla5HFBfpcOmgY4zH7yiRElVPtAGRc0dB/WVWQ6ArrYKs/5jaX9NQZ3ChrjO8xwwuW2azUtkOd3r9I+nD4SPXjulgtixACzlGRDmx84whMOUtEKpT2noKD7fFhFJ2u5GhHWqejRM0zgKQ0CS+jNurOxTxpvTrsXNs4jnr5eInJszCEdzO2Q+AIARhOdIYezAPHxxPl+wfC9ClPp+uZDFXuIZE3I579Kha98siQOXvtLJ/HHYqXa1GgdVmXyIomP0ipbfIdryHp2Q93S5bb+D4nYVt/mg+1bMrdcITMVwJmgaxqU8UVIUDamtGkG94AJXQ+wLffC9QMyIqe90w5tZo0qR9FmLhF3Zx9HStOjToh+C4ZW2jWlNNbyfvqb0InZCfzUheKvr/9vsOcVnqwit2gn215E1Z8GkUBZId22Kz4Z2Qq/vaZ2r9YVIyT7073zw7R3BVVBJvVJ7U0VxhLRDfYtXOKhmjn0mDkSUZr8BIQNuK36X4LurapuJde4qMAK0+EULLtIxcDKMDsKLnLDM0AtDBV3ra2aQLzWg89b67ZeAuy4wE7d8jxj+ZBGfo2vQqOTfr8aY91MpdYSvxMYqbpnrMlIgzU5Kyzylem/K83Any2evlQRXdw+3NuAEb0IUNOuzBWebJQ50sVN1wXdUVe66KcKkKatpLBrV4KQ3lqCdHXqLfLqSitERUxPqI++gEffGUoBZt/l+JBg4ZHyMfYoPXtJL8f8Ww/zoSBjy+u141ONq2Uv65vtmejow="
}
