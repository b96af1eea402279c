"""The second half of ``make soak``: what comes in from Stripe, in random orders and among a flood of what must change nothing.

lives      five customers of the Stripe double, what happens to them there, and what each has in the end
stripe_at  the double as it was after any of these things, over HTTP
digest     what our tables say of some accounts, so that two histories can be compared
orders     the same events in hundreds of orders, doubled, and worked by workers that die: one end
flood      a hundred thousand deliveries over HTTP to a real server, most of them no good: one end, and no 5xx
"""
