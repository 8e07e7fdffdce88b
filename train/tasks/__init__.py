"""Tasks: conversion of rows to questions and answers."""
