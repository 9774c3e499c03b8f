"""What people and programs see of a campaign: one projection per question.

    where does it stand            overview     counted from the state
    what is it working on          tasks        from the state
    which models, how accurate     committees   from the ledger, and what is newer in the state
    what did exploration find      rounds       from the ledger
    which plan, since when         plans        from the ledger; `amendment`: before it is sent
    what became of each frame      frames       from the ledger; `why` puts one of them into words
    who worked on what, and when   work         from the ledger

`campaign.CampaignView` reads a ledger once and offers them all; `campaign.Status` is what a screen
shows of a campaign at one moment. Status, live view, report, export, API, metrics and dashboard
take their numbers from here, so they agree. A projection never decides and never writes.
"""
