"""The storyteller's text in traditional characters, for the one file of the demonstration that is in Big5.

Big5 has no simplified characters. This covers what the storyteller's bank uses and is no general converter.
"""

import re

_PAIRS = """
东東 丝絲 丢丟 两兩 个個 为為 书書 乱亂 亲親 会會 关關 军軍 凉涼 则則 剑劍 动動 势勢 单單 卖賣 却卻 厉厲 压壓 厮廝 县縣 叶葉
吓嚇 响響 唤喚 场場 块塊 坛罈 声聲 壳殼 壶壺 处處 头頭 夹夾 实實 将將 尽盡 师師 庙廟 开開 张張 弯彎 弹彈 当當 径徑 恶惡 戏戲
战戰 报報 担擔 摆擺 断斷 无無 旧舊 时時 条條 来來 枣棗 枪槍 桥橋 桩樁 梦夢 楼樓 毕畢 汉漢 沟溝 没沒 泼潑 浊濁 浓濃 温溫 溅濺
滚滾 满滿 灯燈 烂爛 烟煙 烧燒 热熱 爷爺 独獨 狭狹 环環 疯瘋 盏盞 盘盤 着著 砚硯 秃禿 箫簫 红紅 纸紙 纹紋 线線 缘緣 缝縫 罗羅
罢罷 肠腸 胆膽 脚腳 脱脫 脸臉 腾騰 蒋蔣 见見 计計 设設 证證 诗詩 话話 该該 说說 诸諸 谁誰 谈談 负負 败敗 账賬 贼賊 贾賈 赏賞
赔賠 跃躍 转轉 轻輕 输輸 过過 还還 这這 进進 连連 迟遲 钢鋼 钱錢 钻鑽 铁鐵 铜銅 银銀 铺鋪 锅鍋 锈鏽 锣鑼 锤錘 镖鏢 长長 门門
闪閃 问問 闯闖 间間 闹鬧 闻聞 阑闌 阴陰 阶階 险險 难難 风風 飞飛 饭飯 饮飲 马馬 驴驢 骑騎 黄黃 怀懷 从從 云雲 后後 干乾 台臺
胜勝 斗鬥 气氣 听聽 万萬 与與 怜憐 离離 双雙 欢歡 网網 页頁 载載 阅閱 读讀 录錄 记記 传傳 请請 点點 击擊 继繼 续續 题題 儿兒
"""
_TO_TRADITIONAL = str.maketrans({pair[0]: pair[1] for pair in _PAIRS.split()})
# 里 is 裡 where it means inside and stays 里 where it is a distance; 面 is 麵 only in a bowl.
_INSIDE = re.compile(r"(?<![十千萬])里")


def to_traditional(text: str) -> str:
    return _INSIDE.sub("裡", text.translate(_TO_TRADITIONAL)).replace("牛肉面", "牛肉麵")
