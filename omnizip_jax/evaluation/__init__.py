"""Evaluation of methods on questions about videos: accuracy and cost.

``dataset_readers`` turn published data sets into a ``question_file``; ``protocols`` define prompts
and scoring, by ``reply_reading`` or by a published rule; ``clip_evaluator`` answers the questions
about one clip; ``dataset_runner`` does so for a whole file, and appends to ``result_files``;
``run_report`` summarises a run, and ``paper_comparison`` shows several runs beside
the paper's own results.
"""
