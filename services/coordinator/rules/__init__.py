"""The rules of the loop: pure functions that look at the state and decide what happens next.

Each rule takes a `Decisions`, reads `decisions.state`, and adds commands or facts when its
condition holds; otherwise it does nothing. `policy.py` lists the rules in order and runs them until
none of them adds a decision. A rule never changes the state itself: `Decisions.decide` passes every
decision to `apply`, so that the next rule sees its effect.
"""
