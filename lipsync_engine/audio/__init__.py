"""Audio features and voice activity, in bounded memory for files of any length.

    features  log-mel spectrogram and Whisper hidden states, windows of them per frame
    vad       voice activity and loudness

The package knows neither frames nor models of faces.
"""
