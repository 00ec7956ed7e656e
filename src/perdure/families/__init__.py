"""What the methods of one family share: their models at work, their losses, their loops.

Above `models`, below `methods`: a file here serves two methods or more; what serves one lies with it.
"""
