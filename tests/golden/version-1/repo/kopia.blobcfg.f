`
9h¥δρ`+lW‹H_ΕmΝ΄HμM·h3oΡ