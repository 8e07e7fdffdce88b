"""Use of a run or adapter on new rows: predict, abstain, prediction sets."""
