{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "v1Mgr0sE+VwQUStzLHyaHx4mJE/25od4LAHaDF0tjKA=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "Dyog4JdsMtE9Orvh/zV6auconi2aOVN2Aa4xarxa3uGT6eQQAChpvfKzs4cTh53wJ6u7fcU5TuKXCvG/us5h4qzuAJErTQ3b0oxHPn1a2bWeUYEHBxc87hWrNq4E1Y2MTmmYINzSLKQYDFr4/A/+aASGhNGOHus99IpzcbFuHwtk6/Ka7InYzPn5pDudCQGIP/lu9thzgRodklFWjonyJ9vc77dTXAVmtdCZeTdDakYlT9f7V+HYi/Q1eE60jPPXfBqnsTfQF+IfV9irIW37T3rQXlS/9TydhWsHqzdhIXkuQy1L4Zcvb/2lP0LAMoFncPHB+FMuIAEmMY/QqlDOqgbAjO7MltmOk0YGlTZeD9g/YJyx3TlnAIPLHHZE36nIF8qoULIVsegMfD7zE/MCxh2zshlsGZMrtKUH3cKguWlFje9PntcSgALcbKAA5P9wR3qT/gWrEyVrAivXuwn69EuM6b/f7I/IfN682x8f8NjDrjxvT0uNvz9BGAyWxzPlMOECVG9D46ucB55I+9ERPV+O/yftZBd6T4V7qxCzvYREEFMw+yyYqX0ZKBy9pkqM7rYI7Di8FvytR43A2HGFSf+zK12pIfEmpMC/mR8Ph/CMSwrnGbHPIGe2Gba5L5yRY89ZGoa+/MGAJnzVfX1421MrR3VUL1EdmpiQ4ix1AO3ux6ZnxLT3POGR+uUm5agkqngw+SsoLC8fDpV0idOiyN2+pizYCaLiw39OkRb0bV1ZNJ851rnjkbWct6EoNqNuDFX0FsFKALkMK19KWjdlZ8v8"
}
