-- Decides what the requests of one replica may take, one after the other, each from all of its buckets or from none. It
-- is the arithmetic of gateway/limits/bucket.py, step by step, so that both come to the same doubles.
--
-- KEYS     the buckets. A rate is a string, the moment at which it will be full again, in microseconds of this server's
--          clock since EPOCH; what is full has no key. A count of what runs is a hash: replica -> "how many, until when".
-- ARGV[1]  the replica that asks
-- ARGV[2]  doubles, little-endian:
--          how long a count holds without being told again, in microseconds; after which moment the call is void;
--          for each bucket: amount, period (0: a count), own, wanted. `own` of a rate is how much to spend of it before
--          anything else, or if negative to give back; of a count, how many this replica has now;
--          for each request: how many buckets it takes from, and for each of them which, and how much.
--
-- Answers doubles: now; for each bucket its level at the end, and how much was granted of what was wanted; for each
-- request the bucket that refused it (0: none), how long to wait, and the levels of its buckets. Only now: it was void.

local SLACK = 1
local EPOCH = 1767225600 -- 2026 began. From 1970 on a double would tell moments apart by quarters only.
local MARGIN_MS = 10 -- a key outlives its use by so much
local replica, asked, place = ARGV[1], ARGV[2], 1

local function number()
  local value
  value, place = struct.unpack('<d', asked, place)
  return value
end

local answer = {}
local function tell(value)
  answer[#answer + 1] = struct.pack('<d', value)
end

local time = redis.call('TIME')
local now = (time[1] - EPOCH) * 1000000 + time[2]
tell(now)
local keep = number()
if now > number() then
  return answer[1]
end

-- What a key holds. What is of another type is not ours, and goes.
local function held(command, key)
  local found = redis.pcall(command, key)
  if type(found) == 'table' and found.err then
    if string.sub(found.err, 1, 9) ~= 'WRONGTYPE' then
      return redis.call(command, key) -- fails again, and says so
    end
    redis.call('DEL', key)
    return command == 'HGETALL' and {} or false
  end
  return found
end

local function level(bucket)
  if bucket.period == 0 then
    return bucket.others + bucket.own
  end
  return bucket.full_at > now and bucket.full_at - now or 0
end

-- Sets the level of a rate; nothing makes it more than full.
local function set(bucket, backlog)
  bucket.full_at = backlog > 0 and now + backlog or now
  bucket.changed = true
end

local function open_rate(bucket, own)
  bucket.interval = bucket.period / bucket.amount
  bucket.full_at = tonumber(held('GET', bucket.key) or now) or now
  if own ~= 0 then
    set(bucket, level(bucket) + own * bucket.interval)
  end
end

local function open_count(bucket, own)
  bucket.own, bucket.others, bucket.noted = own, 0, false
  local fields = held('HGETALL', bucket.key)
  for at = 1, #fields, 2 do
    local count, expires_at = string.match(fields[at + 1], '^(%d+) (-?%d+)$')
    if fields[at] == replica then
      bucket.noted = true
    elseif count and tonumber(expires_at) > now then
      bucket.others = bucket.others + count
    else
      redis.call('HDEL', bucket.key, fields[at])
    end
  end
end

local buckets = {}
for at = 1, #KEYS do
  local amount, period, own, wanted
  amount, period, own, wanted, place = struct.unpack('<dddd', asked, place)
  local bucket = {key = KEYS[at], amount = amount, period = period, wanted = wanted}
  if period == 0 then
    open_count(bucket, own)
  else
    open_rate(bucket, own)
  end
  buckets[at] = bucket
end

-- One request: see Book.take.
local function decide(size)
  local which, costs, levels = {}, {}, {}
  local refused, longest = 0, 0
  for at = 1, size do
    local row, cost
    row, cost, place = struct.unpack('<dd', asked, place)
    local bucket = buckets[row]
    which[at], costs[at], levels[at] = bucket, cost, level(bucket)
    if bucket.period == 0 then
      if levels[at] + 1 > bucket.amount and refused == 0 then
        refused = at
      end
    elseif cost > bucket.amount then
      refused, longest = at, math.huge
    elseif cost > 0 then
      local over = levels[at] + cost * bucket.interval - bucket.period
      if over > SLACK and over > longest then
        refused, longest = at, over
      end
    end
  end
  if refused == 0 then
    for at = 1, size do
      local bucket = which[at]
      if bucket.period == 0 then
        bucket.own = bucket.own + 1
        levels[at] = levels[at] + 1
      elseif costs[at] ~= 0 then
        levels[at] = levels[at] + costs[at] * bucket.interval
        set(bucket, levels[at])
      end
    end
  end
  return refused, longest, levels
end

local decided = {}
while place <= #asked do
  local refused, longest, levels = decide(number())
  decided[#decided + 1] = refused
  decided[#decided + 1] = longest
  for at = 1, #levels do
    decided[#decided + 1] = levels[at]
  end
end

-- A lease, if after it less than half is used.
local function grant(bucket)
  local wanted = bucket.wanted
  if wanted == 0 then
    return 0
  end
  if bucket.period == 0 then
    if 2 * (level(bucket) + wanted) >= bucket.amount then
      return 0
    end
    bucket.own = bucket.own + wanted
  else
    local after = level(bucket) + wanted * bucket.interval
    if 2 * after >= bucket.period then
      return 0
    end
    set(bucket, after)
  end
  return wanted
end

local function write_rate(bucket)
  if not bucket.changed then
    return
  end
  if bucket.full_at > now then
    local lives = math.ceil((bucket.full_at - now) / 1000) + MARGIN_MS
    redis.call('SET', bucket.key, string.format('%.17g', bucket.full_at), 'PX', lives)
  else
    redis.call('DEL', bucket.key)
  end
end

local function write_count(bucket)
  if bucket.own > 0 then
    redis.call('HSET', bucket.key, replica, string.format('%.0f %.0f', bucket.own, now + keep))
    redis.call('PEXPIRE', bucket.key, math.ceil(keep / 1000) + MARGIN_MS)
  elseif bucket.noted then
    redis.call('HDEL', bucket.key, replica)
  end
end

for at = 1, #buckets do
  local bucket = buckets[at]
  local granted = grant(bucket)
  tell(level(bucket))
  tell(granted)
  if bucket.period == 0 then
    write_count(bucket)
  else
    write_rate(bucket)
  end
end
for at = 1, #decided do
  tell(decided[at])
end
return table.concat(answer)
