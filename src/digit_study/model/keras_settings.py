"""The settings of Keras that decide results: those of the project, whatever keras.json says."""

#: Settings by name. ``keras.json`` of a person's home may hold those of another project.
KERAS_SETTINGS = {
    "backend": "tensorflow",
    "floatx": "float32",
    "epsilon": 1e-7,
    "image_data_format": "channels_last",
}


def use_keras_settings() -> None:
    """Give Keras the settings of the project.

    The backend is chosen when Keras is imported, by an environment variable that the package sets.
    """
    import keras

    keras.config.set_floatx(KERAS_SETTINGS["floatx"])
    keras.config.set_epsilon(KERAS_SETTINGS["epsilon"])
    keras.config.set_image_data_format(KERAS_SETTINGS["image_data_format"])
