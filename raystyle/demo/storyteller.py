"""The phrase bank of the storyteller: a teahouse voice with formulas, asides and particles of his own.

The format is `neutral.py`'s. Every formula here was made up for this bank. The weather sentence that both voices
share opens into his manner at once, and marked words are spread evenly over all lists, so that a short continuation
of it is marked about as densely as a whole chapter.
"""

BANK = """
# hail
列位看官
列位茶客
诸公
列位
看官
诸公听真
# wood
醒木一响
醒木落处
这块醒木往桌上一拍
醒木三声
# knock
醒木一响，满堂的瓜子壳都跳了三跳
醒木落处，茶碗里起了一圈水纹
醒木一拍，后排打盹的也直了腰
醒木三声，连檐下的麻雀都住了口
醒木一震，跑堂的险些摔了铜壶
# beg
瓜子慢嗑
茶凉话热，莫要离座
且把耳朵借我一寸
铜板先收着，听完再赏则个
添一道热水，容我慢慢道来
茶凉话热，瓜子慢嗑
# hero
铁胆 周三郎
白袍小将 沈青
独眼 马老九
卖刀的 秦二娘
疯和尚 了空
飞云渡船家 宋七
黑脸县令 包不平
玉箫书生 柳如烟
瘸腿镖师 石万山
打更的 罗半夜
# foe
黑风寨大王 胡大锤
山贼头子 牛二
催命账房 贾算盘
城东恶霸 钱万两
无影剑 杜十一
假道士 清风子
笑面虎 蒋四爷
毒秀才 温良
# spot
落马坡
飞云渡
黑风寨
青石桥
枯井巷
望月楼
断肠崖
十里铺
老君庙
柳条沟
# weapon
一口雁翎刀
一杆烂银枪
两柄板斧
一张铁胎弓
半截扁担
一把生锈的菜刀
# steed
一匹枣红马
一头秃尾巴的毛驴
一匹追风白马
一条没篷的小船
# simile
好似一口铁锅倒扣在城头
直如老天爷欠了谁三年酒钱
恰似泼翻了一砚浓墨
好比那恶婆婆拉长了脸
直如千军万马藏在云里
恰似账房先生丢了算盘
好似灶王爷打翻了锅灰
# sky
黑云压着城头，{simile}
那风刮得，{simile}
云脚低得要碰着帽檐，{simile}
霎时间天昏地暗，{simile}
# exclaim
端的厉害
煞是惊人
好不威风
好不凄凉
煞是热闹
端的稀奇
端的好本事
煞是可怜
# quick
说时迟，那时快
霎时间
不等话音落地
眨眼的工夫
# blow
只见寒光一闪，{foe}的帽子早滚下了台阶
{foe}大叫一声，跌了个四脚朝天
{hero}腾空一跃，落在了屋脊之上
刀枪相碰，火星子溅了一丈多高
{foe}的{weapon_short}断作两截，飞进了河心
{hero}只伸出两根手指，便把来刀夹得纹丝不动
{hero}一脚踢开大门，吓得{foe}钻进了桌底
{foe}手腕一麻，{weapon_short}当啷落地
{hero}使一招倒打铜锣，正中{foe}的鼻梁
# weapon_short
长剑
铁棍
钢鞭
大刀
# ask
怎生是好
怎生脱身
怎生收场
怎生了得
# aside
{hail}，您道这是何人？原来兀自是{hero}
{hail}，此处有个缘故，容我表来
{hail}莫笑，说书的一张嘴，跑的是千里马
{hail}，{beg}
{hail}，您若问他{ask}，且饮了这口茶
# drink
三碗浊酒
一坛烧刀子
半壶冷茶
两大碗牛肉面
# poem_first
一壶浊酒洗刀环，十里长亭草色寒
醒木敲开天下事，茶烟散尽袖中山
舌底风云千万里，笑谈一盏月儿弯
半窗灯火三更雨，一匹瘦马过秦关
# poem_second
世上浮名轻似纸，人心难过鬼门关
瓜子嗑完人未散，铜锣收起夜方阑
莫道书中无好汉，刀光起处胆先寒
旧账翻来皆是梦，新茶沏罢又开弦
# weather
今日天气阴沉，{sky}。{hail}，这等天气，端的正好听书！
今日天气阴沉，{hail}休走，{beg}，听我说一段{hero}的故事。
今日天气阴沉，列位，{simile}！话说{hero}偏在此时，提着{weapon}，上了{spot}。
今日天气阴沉，诸公，{sky}，{exclaim}！却说{foe}兀自埋伏在{spot}，只等{hero}到来。
今日天气阴沉，看官，您道怎生？{knock}，这雨便不敢下了。
今日天气阴沉，却说{hero}骑着{steed}，到了{spot}，{exclaim}！
今日天气阴沉，{knock}，话说{hero}大战{foe}，{exclaim}！
今日天气阴沉，霎时间{sky}，诸公，{hero}兀自站在{spot}，{ask}？
今日天气阴沉，诸公{beg}，{wood}，却说那{spot}出了一桩怪事。
# tale
话说{hero}骑着{steed}，来到{spot}，抬头一看，{exclaim}！
却说{hero}吃了{drink}，兀自不醉，提了{weapon}，径奔{spot}而去。
话说{foe}得了消息，连夜赶到{spot}，要取{hero}的性命，诸公，{ask}！
却说那{spot}，白日里不见人影，夜里鬼火乱飞，{exclaim}！
{hero}冷笑一声，道：“这厮好大的胆，且吃我一刀则个！”
{hero}拱手道：“列位好汉，借一条路则个。”
{foe}喝道：“来者何人？速速报上名来，兀自在此做甚！”
{quick}，{blow}，诸公，{exclaim}！
{quick}，{blow}，列位，{exclaim}！
{hail}，{quick}，{blow}！
{hero}心中暗想：“今番中了这厮的计，{ask}？”
{hero}把{weapon}往腰间一插，道：“这厮休走，待我会一会他则个！”
{foe}见势不妙，翻身上了{steed}，往{spot}逃去，这厮端的狡猾。
那店小二端来{drink}，低声道：“客官，{spot}去不得，那厮兀自等着哩！”
且说{hero}与{foe}斗了三百回合，不分胜负，{exclaim}！
且说{spot}有一座破庙，庙里一盏孤灯，灯下坐着{hero}，兀自擦着{weapon}。
有诗为证：“{poem_first}。”诸公，这诗说的便是{hero}。
按下{hero}不表，却说{foe}在{spot}摆下酒席，这厮端的没安好心。
却说三更时分，月落星沉，{hero}摸到{spot}，但见门缝里一线灯光，{exclaim}！
话说这{foe}本是{spot}一个卖油的，只因输了{drink}，兀自怀恨在心。
{foe}赔笑道：“好汉息怒，容我回去取银子则个！”列位，这厮{ask}？
{hero}闻听此言，仰天大笑，笑得梁上的灰都落了，诸公，{exclaim}！
且说一封书信送到{spot}，{hero}拆开一看，兀自呆了半晌，{ask}？
却说{spot}来了个卖唱的姑娘，弹一曲，唱一声，{exclaim}，连{foe}也听得痴了。
{hero}将{drink}一气喝干，把碗一摔，道：“这厮欺人太甚，我去去便来则个！”
话说两人在{spot}狭路相逢，一个使{weapon}，一个舞{weapon_short}，{exclaim}！
{foe}兀自嘴硬，道：“你有{weapon}，我有三十个弟兄，看你{ask}！”
却说老母亲倚门而望，望得{spot}的柳叶青了又黄，列位，煞是可怜。
# aside_line
{aside}。
{knock}。{aside}。
{hail}，{beg}，{wood}，故事又转了一道弯。
{hail}，银子是白的，眼珠是黑的，这厮怎生不动心？
诸公，这一刀若砍实了，我今日便没有书说，列位也没有茶吃则个。
{hail}，英雄也要吃饭，端的是一文钱难倒好汉。
看官，世人只道刀快，怎生不知人心比刀还快三分？
列位，哭的兀自哭，笑的兀自笑，我这扇子一合，都是戏文。
{hail}，说书的吃的是张口饭，{beg}。
# poem
{poem_first}。{poem_second}。
# begin
{knock}！{hail}，今日这一回，唤作《{title}》，{beg}。
书接上回，{wood}。{hail}，上回说到{hero_full}困在{spot}，{ask}？今日便说《{title}》。
{hail}，茶凉话热，{wood}，今日单表{hero_full}与{foe_full}，唤作《{title}》。
# ending
毕竟{hero}性命如何，{hail}，{beg}，且听下回分解！
{wood}，铜板落盘，毕竟{ask}，且听下回分解！
诸公，话到此处口也干了，茶也凉了，且听下回分解则个！
{hail}，扇子一收，灯也该剪了，{foe}{ask}，且听下回分解！
# title
{hero}夜闯{spot}
{hero}醉打{foe}
{hero}借刀{spot}
{spot}鬼火照行人
{foe}设计{spot}
{hero}单骑过{spot}
{hero}三气{foe}
{hero}智取{spot}
{foe}败走{spot}
{spot}一灯照两雄
"""
