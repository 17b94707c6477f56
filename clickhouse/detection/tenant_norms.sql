-- For some hours of a day, from each and its neighbours on earlier days of its kind: weekdays, or weekends.
INSERT INTO tenant_norm
    (place, tenant_id, hour, days, surprise, lacking, usual, longest_silence, second_silence, generation)
SELECT (intDiv({day:UInt32}, 3600) + target) % 384, tenant_id, toDateTime({day:UInt32} + 3600 * target, 'UTC'), age,
    -- An empty bin is as surprising as the least busy of the three hours makes it.
    least(arrayMin(p -> -log(1 - p / (12 * alike + 1)), used), drift * arrayMin(tokens) / (12 * alike)),
    -- The weeks that a young tenant does not have count as empty.
    least(drift, 1.2) * arrayReverseSort(arrayResize(weeks, 4))[3],
    drift * (arrayReverseSort(arrayResize(weeks, 4))[2] + arrayReverseSort(arrayResize(weeks, 4))[3]) / 2,
    silences[1], silences[2], {generation:UInt64}
FROM
(
    SELECT tenant_id, target, any(born.days) AS age, any(born.change) AS drift,
        greatest(1, countIf(is_alike AND ago <= 28)) AS alike,
        sumForEachIf(bins_used, is_alike AND ago <= 28) AS used, sumForEachIf(tokens_issued, is_alike AND ago <= 28) AS tokens,
        groupArrayIf(arraySum(tokens_issued) / 36, ago IN (7, 14, 21, 28)) AS weeks,
        arrayReverseSort(groupArrayIf(longest, is_alike)) AS silences
    FROM
    (
        SELECT tenant_id, target, ago,
            (toDayOfWeek(toDateTime({day:UInt32} - 86400 * ago, 'UTC')) > 5)
                = (toDayOfWeek(toDateTime({day:UInt32}, 'UTC')) > 5) AS is_alike,
            -- In the order later, same, sooner.
            groupArrayInsertAt(0, 3)(toUInt64(bitCount(filled)), toUInt32(place)) AS bins_used,
            groupArrayInsertAt(0, 3)(issued, toUInt32(place)) AS tokens_issued, max(silent) AS longest
        FROM
        (
            SELECT tenant_id, filled, issued, silent, place, toUnixTimestamp(hour) + 3600 * place - 3600 AS like,
                intDiv(like, 3600) % 24 AS target,
                intDiv(toInt64({day:UInt32}) + 86399 - like, 86400) AS ago
            FROM tenant_hour FINAL ARRAY JOIN [0, 1, 2] AS place
            WHERE hour IN {sources:Array(DateTime('UTC'))} AND target IN {targets:Array(UInt16)} AND ago BETWEEN 1 AND 60
        )
        GROUP BY tenant_id, target, ago
    ) AS work
    INNER JOIN
    (
        -- How the last week compares with the last four.
        SELECT tenant_id, toUInt16(toDate(toDateTime({day:UInt32}, 'UTC')) - min(day)) AS days,
            greatest(0.5, least(1.3, (sumIf(issued, day >= toDate(toDateTime({day:UInt32} - 604800, 'UTC'))) / 7 + 1)
                / (sumIf(issued, day >= toDate(toDateTime({day:UInt32} - 2419200, 'UTC'))) / 28 + 1))) AS change
        FROM tenant_day FINAL WHERE issued > 0 AND day < toDate(toDateTime({day:UInt32}, 'UTC')) GROUP BY tenant_id
    ) AS born USING (tenant_id)
    GROUP BY tenant_id, target
)
